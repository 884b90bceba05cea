#include <linux/module.h>

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Does nothing; its build is what is looked at");
