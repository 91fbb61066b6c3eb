"""Proves a migrated region without the product: needs boto3 and hashlib, a bucket, and the hashes taken before adoption.

    python verify.py region.json        endpoint, bucket and keys from S3_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY, S3_SECRET_KEY

Every file of every item that was on an export must be in the bucket under CloudStack's layout with the same SHA-256; every
item object in the bucket must be one of them. Prints a JSON summary; exit status 0 only if nothing is missing or different.
"""

import hashlib
import json
import os
import re
import sys

import boto3
from botocore.config import Config

OWN = re.compile(r"^\.(cs-|cloudstorage)")
UNIQUE_NAME = re.compile(r"^(template/tmpl/\d+/\d+)/[^/]+/")


def main(region_file: str) -> int:
    with open(region_file) as file:
        region = json.load(file)
    wanted: dict[str, set[str]] = {}
    for item in region["items"]:
        for entry in item["files"]:
            wanted.setdefault(entry["path"], set()).add(entry["sha256"])

    s3 = boto3.client(
        "s3",
        endpoint_url=os.environ["S3_ENDPOINT"],
        aws_access_key_id=os.environ["S3_ACCESS_KEY"],
        aws_secret_access_key=os.environ["S3_SECRET_KEY"],
        region_name=os.environ.get("S3_REGION", "us-east-1"),
        config=Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required"),
    )
    bucket = os.environ["S3_BUCKET"]
    seen: set[str] = set()
    wrong: list[str] = []
    size = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            key = entry["Key"]
            if OWN.match(key):
                continue
            path = UNIQUE_NAME.sub(r"\1/", key)
            digest = hashlib.sha256()
            body = s3.get_object(Bucket=bucket, Key=key)["Body"]
            for block in body.iter_chunks(1 << 20):
                digest.update(block)
                size += len(block)
            if path not in wanted:
                wrong.append(f"{key}: not on any export before adoption")
            elif digest.hexdigest() not in wanted[path]:
                wrong.append(f"{key}: SHA-256 differs from the original's")
            else:
                seen.add(path)
    missing = sorted(set(wanted) - seen)
    print(
        json.dumps(
            {
                "items": len({(item["kind"], item["account_id"], item["upstream_id"]) for item in region["items"]}),
                "files": len(wanted),
                "proven": len(seen),
                "bytes": size,
                "missing": missing,
                "wrong": wrong,
            }
        )
    )
    return 1 if missing or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
