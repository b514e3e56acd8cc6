"""What an operator runs on a team's services: accounts, backup, restore, upgrade."""
