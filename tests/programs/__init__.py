"""Programs and graphs that tests are made of, none of them faulty."""
