"""What people look at: figures, reports, the explorer page and videos."""
