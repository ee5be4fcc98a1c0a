"""What `plan_ranks` is made of: levelling cost between ranks, and planning ranks that do not fit alone."""
