/* Says as whom it runs. Installed setuid root, it shows whether that still means anything (``vcg bench escape``). */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    printf("%d\n", (int)geteuid());
    return 0;
}
