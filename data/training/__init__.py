"""The training that both stages share. The only room of `data` that imports torch and Lightning at the top."""
