"""What stands beside every answer, on paper, on the screen and in tables."""

NOT_CLINICAL = "Research software, not for clinical use."
