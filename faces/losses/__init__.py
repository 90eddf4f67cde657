"""Classification losses of people that teachers and students share: float features and labels to one loss a face."""
