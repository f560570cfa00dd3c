"""Many mixed requests against one real proxy: do memory and descriptors stay where they were?"""
