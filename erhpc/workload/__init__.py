"""What is asked, and when: prompts and texts, conversations, lengths, arrivals. Seeded, and the same in every process.

tokenizer                  a model's tokenizer, read from its file
lengths, words, texts      how long texts are, and texts of that length
bodies, pool, requests     a user's conversations as bodies of requests
profile, arrivals          how the load changes within a level, and when the requests of an open loop are due
traces                     arrival times and lengths that somebody recorded
"""
