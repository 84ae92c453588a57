"""Parts of messages beside the fields of requests: contents of chats, embeddings, Anthropic's errors"""
