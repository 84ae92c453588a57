"""OpenAI's `/v1/files` and `/v1/batches`: jobs of many requests that outlive the server and leave room for people"""
