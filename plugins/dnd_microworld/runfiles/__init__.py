"""The run files of the microworld and the calibration of its scores."""
