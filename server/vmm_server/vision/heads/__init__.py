"""What leaves a detector → `Detections`: a small pure function for each way of writing it."""
