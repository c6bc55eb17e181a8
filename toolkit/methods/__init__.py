"""The methods: each of the four papers is one folder, and so is continual learning."""
