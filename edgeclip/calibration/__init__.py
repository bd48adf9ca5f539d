"""Which images ranges are measured on before quantization."""
