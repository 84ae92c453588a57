"""OpenAI's Responses and Anthropic's Messages on the edge: converters to and from the chat completion"""
