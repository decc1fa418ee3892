"""What is done to a ranked list before anyone sees it: pure rules, each with its policy, in one declared order (`chain.ORDER`)."""
