"""What both servers and every client share: config, errors, types, HTTP, the protocol, the decoding pipeline."""
