"""One agent to whoever subscribed: publishing, the handlers' tasks, replays, catching up, CloudEvents."""
