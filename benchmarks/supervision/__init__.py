"""What stage 2 of the quickstart learns from: references, or rollouts with one supervision or the other."""
