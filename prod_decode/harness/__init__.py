"""What benchmarks of others need: a model's scores and outputs under the mask, in the form that they read."""
