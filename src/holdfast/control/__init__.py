"""HTTP and JSON over one unix socket: reads snapshots, posts commands."""
