"""Checks the report of a retired store without the product: needs boto3 and hashlib, the report as JSON, and the bucket.

    python verify_report.py retired-nfs.json      S3_ENDPOINT, S3_BUCKET, S3_PREFIX, S3_ACCESS_KEY and S3_SECRET_KEY say where

Every file of the report must be in the bucket with its size and SHA-256. Prints a JSON summary; exit status 0 only if all are.
"""

import hashlib
import json
import os
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def main(path: str) -> int:
    with open(path) as file:
        report = json.load(file)
    s3 = boto3.client(
        "s3",
        endpoint_url=os.environ["S3_ENDPOINT"],
        aws_access_key_id=os.environ["S3_ACCESS_KEY"],
        aws_secret_access_key=os.environ["S3_SECRET_KEY"],
        region_name=os.environ.get("S3_REGION", "us-east-1"),
        config=Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required"),
    )
    wrong = []
    for item in report["items"]:
        digest, size = hashlib.sha256(), 0
        try:
            body = s3.get_object(Bucket=os.environ["S3_BUCKET"], Key=os.environ.get("S3_PREFIX", "") + item["key"])["Body"]
        except ClientError as error:
            wrong.append(f"{item['key']}: {error.response['Error']['Code']}")
            continue
        for block in body.iter_chunks(1 << 20):
            digest.update(block)
            size += len(block)
        if (digest.hexdigest(), size) != (item["sha256"], item["size"]):
            wrong.append(f"{item['key']}: content differs")
    if len(report["items"]) != report["end"]["files"]:
        wrong.append("the report is not whole")
    print(json.dumps({"retired": report["retired"]["name"], "files": len(report["items"]), "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
