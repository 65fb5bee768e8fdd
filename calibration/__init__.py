"""What is measured and predicted: latency tables, parity, energy, the schedule predictor."""
