"""What makes the loop look. A trigger only ever says "look": it carries no content, and one that is lost is caught by the clock."""
