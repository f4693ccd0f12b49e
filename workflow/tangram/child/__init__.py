"""The heterogeneous child: its model code and its assembly."""
