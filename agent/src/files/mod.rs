//! Model files on the node: the cache of the hub, local models, uploads, archives, packages.
