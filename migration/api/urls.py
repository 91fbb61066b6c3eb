"""Addresses of conversions, drains and verifications below /api/v1/."""

from __future__ import annotations

from django.urls import path

from migration.api import conversions, decommissions, drains, undo

urlpatterns = [
    path("preflights", conversions.Preflights.as_view()),
    path("preflights/<uuid:id>", conversions.PreflightOne.as_view()),
    path("conversions", conversions.Conversions.as_view()),
    path("conversions/<uuid:id>", conversions.ConversionOne.as_view()),
    path("conversions/<uuid:id>/commit", undo.ConversionCommit.as_view()),
    path("conversions/<uuid:id>/rollback", undo.ConversionRollback.as_view()),
    path("conversions/<uuid:id>/rollback/plan", undo.RollbackPlanOne.as_view()),
    path("conversions/<uuid:id>/rollback/retry", undo.RollbackRetry.as_view()),
    path("conversions/<uuid:id>/rollback/abandon", undo.RollbackAbandon.as_view()),
    path("drains", drains.Drains.as_view()),
    path("drains/<uuid:id>", drains.DrainOne.as_view()),
    path("drains/<uuid:id>/start", drains.DrainStart.as_view()),
    path("drains/<uuid:id>/pause", drains.DrainPause.as_view()),
    path("drains/<uuid:id>/resume", drains.DrainResume.as_view()),
    path("drains/<uuid:id>/cancel", drains.DrainCancel.as_view()),
    path("drains/<uuid:id>/retry", drains.DrainRetry.as_view()),
    path("drains/<uuid:id>/limits", drains.DrainLimits.as_view()),
    path("drains/<uuid:id>/history", drains.DrainHistory.as_view()),
    path("drains/<uuid:id>/errors", drains.DrainErrors.as_view()),
    path("verifications", drains.Verifications.as_view()),
    path("verifications/<uuid:id>", drains.VerificationOne.as_view()),
    path("stores/<uuid:id>/verify", drains.StoreVerify.as_view()),
    path("stores/<uuid:id>/decommission", decommissions.StoreDecommission.as_view()),
    path("decommissions", decommissions.Decommissions.as_view()),
    path("decommissions/<uuid:id>", decommissions.DecommissionOne.as_view()),
    path("decommissions/<uuid:id>/acknowledge", decommissions.DecommissionAcknowledge.as_view()),
    path("decommissions/<uuid:id>/look-again", decommissions.DecommissionLookAgain.as_view()),
    path("decommissions/<uuid:id>/cancel", decommissions.DecommissionCancel.as_view()),
    path("decommissions/<uuid:id>/delete-files", decommissions.DecommissionDeleteFiles.as_view()),
    path("decommissions/<uuid:id>/report", decommissions.DecommissionReport.as_view()),
]
