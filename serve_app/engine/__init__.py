"""The engines that generate music. `protocol` defines their interface; each engine is a module or package of its own."""
