"""The commands of `modelmint`; a module for each group, imported without what they use."""
