"""Speed of exported models, beside what the machine can do."""
