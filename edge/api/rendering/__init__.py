"""Parts of responses as OpenAI and llama-server write them: messages, log probabilities, timings"""
