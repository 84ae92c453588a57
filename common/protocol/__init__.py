"""Messages between the programs, and their bytes: the OpenAI API, `/stream` and `/split` frames, vocabularies."""
