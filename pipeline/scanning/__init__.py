"""The scan gate's judgement: findings, waivers, policy, verdict. No network and no subprocess in here."""
