"""The papers' test protocols on the data's own folders: who is compared with whom. One layout a file."""
