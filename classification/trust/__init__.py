"""Fitted after training, on unseen patients: calibration, thresholds, prediction sets, refusal."""
