"""Numbers from scores: ROC and its intervals. Higher score = more likely a member, everywhere."""
