"""What adapted networks cost, beside their peers and the frozen backbone, in one process."""
