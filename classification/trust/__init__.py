"""What is fitted after training: calibration, prediction sets, thresholds, refusal."""
