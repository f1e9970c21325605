"""veilrun: private inference of Hugging Face models on machines you do not trust."""
