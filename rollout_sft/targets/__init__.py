"""From a sample and a rollout to the segment that is trained: the protocol, and the builder for objects."""
