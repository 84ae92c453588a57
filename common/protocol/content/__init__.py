"""Parts of requests and replies: options, contents of chats, embeddings, tokenizers, Anthropic's errors"""
