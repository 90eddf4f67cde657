"""What a teacher is fine-tuned by. Every loss takes float features and gives one value a sample (or a term)."""
