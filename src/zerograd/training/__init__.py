"""A model, what of it is tuned, and transformers' Trainer with MeZO's step."""
