"""What masking, guarding and training cost, beside the peers."""
