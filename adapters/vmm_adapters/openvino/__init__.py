"""Paged decoders on OpenVINO: `runner` is the adapter, `graph` and `attention` make the model it runs."""
