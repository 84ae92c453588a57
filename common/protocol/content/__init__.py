"""Parts of requests and replies: options, contents of chats, embeddings, Anthropic's errors"""
