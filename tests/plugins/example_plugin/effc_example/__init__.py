"""A plug-in of effc: a pass, a board, a model, a frontend and a backend."""
