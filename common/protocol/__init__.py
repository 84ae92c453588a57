"""Wire messages and their encoding: the OpenAI API, the frames of `/stream` and `/split`, vocabularies."""
