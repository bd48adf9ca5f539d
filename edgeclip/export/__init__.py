"""ContrastiveModel in, bundle out: ONNX variants, each with the proof that it agrees with its model."""
