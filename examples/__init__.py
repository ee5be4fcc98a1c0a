"""What a user of the packages would write."""
