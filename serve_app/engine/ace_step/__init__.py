"""ACE-Step 1.5, on diffusers' components."""
